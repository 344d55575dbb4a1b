"""The registry on the Hub, for everybody to read: a data set, Collections and a static Space.

Only what is public: nothing of private patches, and no row or page that names a private repo.
"""
