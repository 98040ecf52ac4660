"""The heart: audience, experiment, policy, coupons, rendering, outbox, delivery, results."""
