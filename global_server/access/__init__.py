"""Who may do what at the global server, and the record of who did.

`roles` names the roles, `guard` asks for credentials and says who somebody is, `tokens` and `passwords` are the
credentials of users, `keys` those of devices, `known` both as MongoDB holds them, `limits` how often somebody may ask,
`heads` and `doors` what every request passes, `audit` the record. What is kept is `storage.access`.
`docs/security.md` says against whom all this helps.
"""
