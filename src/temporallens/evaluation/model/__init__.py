"""Sections that go on through the language model: what it loses on reconstructions, what features follow when a text is pushed on."""
