"""What many days say: facts of one day of one device, the judgement of global models, and the report folded from them.

Facts are sums, counts and extremes that add up over days and devices, so a day is looked at once. Arrays and plain
values in, plain values out; who reads the readings and keeps the facts is somebody else's work.
"""
