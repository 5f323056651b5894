"""Image files and other forms of images: how they are found, decoded and counted."""
