"""The learning job: per-device learners in keyed state, the global model by broadcast, side outputs; and its cluster.

`job.py` and `functions.py` run on the cluster, shipped as a zip of exactly `flead/` and this folder: they import
`flead` and nothing else of ours. `cluster.py` and `submit.py` start the embedded cluster and keep the job on it.
What a learner keeps in state belongs to `flead.learner`. The names of state and operators here are part of every
checkpoint: change them only with a new job name. Those of sources and sinks name the Kafka that their state speaks of.
"""
