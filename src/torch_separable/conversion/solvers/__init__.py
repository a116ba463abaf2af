"""The mathematics of conversion: factorizations, least-squares fits, the knapsack."""
