"""What tagseg's figures are measured with, by what is measured; run from the repository's root as modules.

python -m benchmarks.quality.voc_animals
"""
