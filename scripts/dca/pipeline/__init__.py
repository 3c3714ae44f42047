"""Runs the stages one after the other: facts to plan, plan to inspected wheel, bundles, environments to work in."""
