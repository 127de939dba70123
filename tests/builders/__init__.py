"""What several tests build: tiny models, drawings, collections, servers."""
