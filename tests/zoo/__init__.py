"""Small models of many architectures with hand-written truths: what can be cut together in each, and what cannot."""
