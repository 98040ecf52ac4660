-- A message's coupon is not looked up again for each row of the outbox: push/enqueue.sql takes the key from the coupon's own row, the only
-- statement that writes one, and coupons are never deleted. docs/decisions/0088-audience-at-size.md
ALTER TABLE push.messages DROP CONSTRAINT messages_coupon_request_fkey;
