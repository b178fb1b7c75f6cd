"""Boosted trees compiled: XGBoost's scores and contributions without XGBoost in the process.

===================  =============================================================================
``forest``           the trees as arrays, and their scores
``contributions``    the same trees' SHAP contributions
``compiler``         makes both of a booster; the only module here that needs XGBoost
``isolated``         runs the compiler in a process of its own
``kernels``          the two loops; the only module here that needs Numba
``native``           the loops' machine code, loaded without Numba
===================  =============================================================================
"""
