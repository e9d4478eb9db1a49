"""Dependency parsing: CoNLL-U, spanning trees and the biaffine parser."""
