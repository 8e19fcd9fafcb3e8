"""The queries kept in `sql/queries/`: one typed function each, named as in the file.

Those of the dissection itself are here by name; those of an experiment in the module of its name.
"""

from and_platform.queries.dissection import (
    current_dissections,
    describe_neuron,
    insert_neuron_terms,
    insert_summary_embeddings,
    layer_table,
    neuron_exemplars,
    neuron_matches,
    neuron_points,
    neuron_terms_of,
    neurons_for_concept,
    probing_clips,
    search_summaries,
    unjudged_adjectives,
    untagged_points,
)
from and_platform.queries.files import all_queries

__all__ = [
    "all_queries",
    "current_dissections",
    "describe_neuron",
    "insert_neuron_terms",
    "insert_summary_embeddings",
    "layer_table",
    "neuron_exemplars",
    "neuron_matches",
    "neuron_points",
    "neuron_terms_of",
    "neurons_for_concept",
    "probing_clips",
    "search_summaries",
    "unjudged_adjectives",
    "untagged_points",
]
