"""Pure array functions: no parameters, no mesh, no input or output."""
