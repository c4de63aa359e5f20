"""What `python -m benchmarks.contestants.start` runs: nothing but an import, made late.

The standard library's pools import the main module again in every worker. With nothing in it, that costs a contestant
nothing, and what is measured is its own start.
"""

if __name__ == "__main__":
    from benchmarks.contestants.starting import main

    main()
