"""The three papers that fpfast is about, each as one command that trains, measures and draws (fpfast/cli_paper.py)"""
