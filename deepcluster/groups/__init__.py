"""From final features to the clusters a person sees: graph, embedding, cut, tree, choice of k, drift."""
