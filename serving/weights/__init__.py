"""Which files a release serves, what they must look like, and how a set of them is named and kept in a bucket."""
