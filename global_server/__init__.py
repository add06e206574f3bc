"""The global server: validates local updates, makes rounds of them, publishes global models; REST and Kafka.

`rounds.RoundService` is the heart and knows neither HTTP nor Kafka; `books` holds what is known, `merging` makes a
round, `trial` and `versions` decide who gets its model, `quarantine` whose updates count. `app`, `routes` and `access`
are REST, `feed` is Kafka, in `intake` updates over REST wait; `schedule` and `publisher` take models out. Its
arithmetic is `flead`'s, its documents are `storage.rounds`. Imports `flead`, `config`, `storage` and `kafka`.
"""
