"""The unlearning methods of text-to-image models, one file each."""
