"""C++ back ends: one .cpp file per op, and `library`, which builds and loads it."""
