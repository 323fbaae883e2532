"""From final features to the clusters a person sees: graph, embedding, cut, merge tree, choice of k, confidence."""
