-- How many coupons a run still has to reserve: targeted members who can have one and have none from it yet.
-- Grain: one row.   Params: run_id, stock_id, receiver_kind, points_price, member_limit.
-- Reads: push.coupon_receivers (push.audiences, push.coupons), push.coupons, push.audiences, core.members
SELECT count(*) AS needed_count
FROM push.coupon_receivers(
    %(run_id)s::text, %(stock_id)s::text, %(receiver_kind)s::text, %(points_price)s::integer, %(member_limit)s::integer
) AS r
WHERE NOT EXISTS (SELECT 1 FROM push.coupons AS c WHERE c.run_id = %(run_id)s::text AND c.member_id = r.member_id)
  AND NOT EXISTS (   -- two members who have turned out to be one person since get one: the survivor, who has the smallest id
      SELECT 1
      FROM core.members AS me
      JOIN core.members AS other
          ON (other.member_id = me.absorbed_by OR other.absorbed_by = me.absorbed_by) AND other.member_id < me.member_id
      JOIN push.audiences AS a ON a.member_id = other.member_id AND a.run_id = %(run_id)s::text AND a.state = 'targeted'
      WHERE me.member_id = r.member_id
  );
