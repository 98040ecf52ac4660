-- Coupons of several issuers.
SELECT 1;
