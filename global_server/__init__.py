"""The global server: validates local updates, makes rounds of them, publishes global models; REST and Kafka.

`rounds.RoundService` is the heart and knows neither HTTP nor Kafka; `app` and `feed` give it what comes from either
side, `schedule` and `publisher` take models out. Its arithmetic is `flead.federation`, its documents are
`storage.rounds`. Imports `flead`, `config`, `storage` and `kafka`.
"""
