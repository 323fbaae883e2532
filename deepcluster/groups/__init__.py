"""From final features to the clusters a person sees: graph, layout, cut, tree, choice of k, drift."""
