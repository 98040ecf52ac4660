"""The marts of a night and what each of them waits for. Imported by DAG files: nothing here imports anything."""

# A mart waits for the marts that its SQL reads, else for the takings. tests/dags/test_edges.py proves the edges by parsing the SQL.
TAKEN = ("touched_facts",)  # the last of the two takings
MART_GRAPH: dict[str, tuple[str, ...]] = {
    "touched_members": (),
    "touched_facts": ("touched_members",),
    # products
    "product_days": TAKEN,
    "products": ("product_days",),
    "product_roles": ("products",),
    "product_pairs": ("products",),
    # people
    "member_days": TAKEN,
    "member_tiers": ("member_days",),
    "points_ledger": ("member_tiers",),
    "member_rfm": ("member_days",),
    "member_stages": ("member_days",),
    "member_facts": ("member_days", "products"),
    "stage_transitions": ("member_tiers", "member_stages", "member_rfm"),
    "asset_cube_daily": ("member_days",),
    # KPIs
    "buyer_firsts": TAKEN,
    "buyer_periods": ("buyer_firsts", "member_days"),
    "shop_kpis_daily": ("buyer_periods",),
    "fulfilment_kpis_daily": TAKEN,
    "review_kpis_daily": TAKEN,
    "service_kpis_daily": TAKEN,
    "content_kpis": TAKEN,
    "social_kpis_daily": ("content_kpis",),
    "channel_kpis_daily": TAKEN,
    "kpi_values": (
        "shop_kpis_daily", "fulfilment_kpis_daily", "review_kpis_daily", "service_kpis_daily", "content_kpis",
        "social_kpis_daily", "channel_kpis_daily",
    ),
    "kpi_signals": ("kpi_values",),
    # campaigns
    "campaign_funnels": TAKEN,
    "campaign_results": ("campaign_funnels",),
    "order_attributions": TAKEN,
    "attribution_by_run": ("order_attributions", "campaign_results"),
    "store_paths": ("order_attributions",),
}  # fmt: skip
