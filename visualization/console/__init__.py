"""The live console: who is in trouble, whether the global model gets better, and whether the pipeline is well.

`fleet` is the state of all devices and knows neither Kafka nor browsers; `words` says in sentences what it means;
`feed` reads the topics into it; `live` makes one frame of changes for all open pages; `pages` is the NiceGUI side, and
`web/` what runs in the browser. `docs/console.md` shows it.
"""
