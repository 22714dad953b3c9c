"""What the assistant can do: one class a toolset, and one way from a method to a tool."""
