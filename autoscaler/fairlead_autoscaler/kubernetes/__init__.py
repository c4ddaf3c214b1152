"""The autoscaler in a cluster: what there is (``world``), how numbers are written (``scaler``),
what is told (``telling``)."""
