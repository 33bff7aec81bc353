"""The benchmarks, a package so that its conftest is not taken for the tests'."""
