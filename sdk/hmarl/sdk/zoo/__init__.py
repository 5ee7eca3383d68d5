"""The model zoo: trained teams to start from, each a signed bundle of at most 2 MB.

``index`` says which there are and what each must be, ``places`` where their files are (a folder, the web, the Hugging
Face Hub), ``fetching`` gets one and puts it in place once it is verified, ``hub`` talks to the Hub (extra ``hub``).
"""
