"""Training of decoder and converter on labelled cases."""
