"""The words of the page that need a sentence, in one list: where one stands, it is underlined and says this."""

TERMS = {
    "cluster": ("cluster", "A group of images that the network finds alike. Its number stays, whatever you call it."),
    "medoid": ("medoid", "The most typical image: the one nearest to the mean of its cluster."),
    "diverse": ("diverse", "Images from all over the cluster, from the most typical on outwards."),
    "borderline": ("borderline", "Images that are nearly as near to another cluster: the first to check."),
    "outlying": ("outlying", "Outliers, which are framed, and the images farthest from the rest of their cluster."),
    "outlier": (
        "outlier",
        "An image unlike those of the fit: its features lie beyond a limit that about one image of the same kind in 150"
        " exceeds.",
    ),
    "distance": (
        "mean distance",
        "How far the images are from the centroids of their cluster, from 0 to 2. Small: a tight cluster.",
    ),
    "centroid": ("centroid", "The mean of some images' features. A new image goes to the cluster of the nearest one."),
    "cohesion": ("cohesion", "How close together the images of a cluster are: the smaller the mean distance."),
    "junk": ("junk", "A mark for clusters of no use. Predict with --reject gives their images no cluster."),
    "map": (
        "map",
        "All images on a plane, like ones together (the objective of UMAP). Only neighbourhoods mean something; the"
        " distances between groups and their sizes do not.",
    ),
    "tree": (
        "merge tree",
        "The order in which clusters would merge if there were fewer, and split if there were more (Ward's method).",
    ),
    "silhouette": (
        "silhouette",
        "How much nearer images are to their own group than to the next: 1 is best, 0 means no difference.",
    ),
    "stability": (
        "stability",
        "How well groups cut from different samples of the images agree (adjusted Rand index): 100% means the same"
        " groups, 0% unrelated ones. Stable groups need not be the ones that you look for.",
    ),
    "round": ("round", "One clustering of all images and the training on it."),
    "pseudo-label": (
        "pseudo-label",
        "The number of the fine cluster that an image is in, which the network learns to predict. No person gave it.",
    ),
    "fine": ("fine clusters", "The many small clusters the network was trained on; the clusters are made after that."),
    "chance": ("chance", "The loss of a network that guesses among K equally frequent numbers: the logarithm of K."),
    "loss": ("loss", "How badly the network predicts the pseudo-labels. It should fall well below chance."),
    "nmi": (
        "NMI",
        "Normalised mutual information: how far one division of the images tells the other. 1: the same, 0: nothing.",
    ),
    "ami": ("AMI", "NMI corrected for what chance gives, so that many small clusters do not look good."),
    "ari": ("ARI", "Adjusted Rand index: how many pairs of images are together in both, 1: all, 0: as by chance."),
    "accuracy": (
        "accuracy",
        "The share of images with the right label, each label having the one cluster it fits best.",
    ),
    "inertia": ("inertia", "The sum of the squared distances of all images to their fine cluster."),
    "reseeded": ("reseeded", "Fine clusters that had become empty and were given new images."),
    "largest": ("largest share", "The share of the largest fine cluster. Near 100% means that the training collapsed."),
}
# Heads of the table of rounds that are such words.
HEADS = {
    "Round": "round",
    "Loss": "loss",
    "Chance loss": "chance",
    "Inertia": "inertia",
    "NMI to previous": "nmi",
    "Largest share": "largest",
    "Reseeded": "reseeded",
}
