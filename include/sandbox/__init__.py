"""A shop, a WeChat account, WeChat Pay, follow-up pages and a mail server on 127.0.0.1 that speak the real protocols.

Start it with `python -m sandbox --help`; every endpoint is described in README.md beside this file.
"""
