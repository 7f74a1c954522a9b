"""Bytes on disk: containers, whole-or-not-at-all files, sizes. Imports only `errors`; needs no torch."""
