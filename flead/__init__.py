"""The domain, free of engines: messages, features, network, learner, scoring, federation, analysis.

Arithmetic on arrays: no Kafka, Flink, Spark, Mongo, HTTP, clock or file in here; clocks and random generators
are arguments. Imports nothing from the other folders. What a device keeps in Flink state is encoded by
`flead.learner`: changing that layout is a state migration.
"""
