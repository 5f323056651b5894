"""What is searched: the sweep file, its space and its strategy."""
