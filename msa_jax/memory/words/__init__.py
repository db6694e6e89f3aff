"""The index of words of a bank: BM25 beside the routers."""
