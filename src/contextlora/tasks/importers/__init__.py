"""Tables of others become task sets: any table by a mapping file, public data sets by an importer of their own."""

IMPORTERS = ("driving_with_llms", "failuresensoriq", "stbench")  # each a module here, with a function `read`
