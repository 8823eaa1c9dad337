"""A memory where other frameworks look for one: a module a framework, and none is imported before it is asked for."""
