"""The section `order`: probing on tasks that a bag of words cannot do."""
