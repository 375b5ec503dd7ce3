"""One model over several processes: transformers shards it by its `tp_plan`, rank 0 leads, the others follow.

Rank 0 is the engine: it alone schedules, samples and speaks to anybody. Before each forward it sends the packed batch
to the followers, which run the same forward on their shard of the weights and their heads' part of the pages.
"""
