"""Pictures of the course: each is a function of its parameters, with words for those who cannot see it."""
