"""What can be typed after `modelcache`: a module a subject, each with its options and what they do."""
