"""The place of `tagseg.dense_crf` in version 0.1, for programs that import it from here."""

from tagseg.crf.dense_crf import dense_crf as dense_crf
