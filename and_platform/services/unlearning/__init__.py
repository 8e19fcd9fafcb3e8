"""Unlearning by ablation (paper, section 4.3, Table 4 and Figure 10).

`plans` chooses neurons, `runs` ablates them and measures what each class loses on held-out clips, `sweep` does so for growing
numbers of neurons beside random draws, `tables` gives the figures, `export` takes a choice out of the platform.
"""
