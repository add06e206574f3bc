"""Set-up of a fresh machine: `prepare.sh` makes the environment, `jars.py` fetches the JVM parts of `ivy.xml`."""
