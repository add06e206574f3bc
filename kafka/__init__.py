"""Kafka: topics, codecs, producer and consumer, the embedded broker, and a compose file for a cluster of three.

A topic, its partitions and its retention are declared once, in `topics.py`; a message's form in `flead/messages.py`.
What is tuned for latency or safety (linger, acks, isolation) stands in `client.py`, the broker's own in `embedded.py`.
May import `flead` and `config`. Not the library `kafka-python`, whose package has the same name: use confluent-kafka.
"""
