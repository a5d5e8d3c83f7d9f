"""autotune for programs that reason: a server of the Model Context Protocol."""
