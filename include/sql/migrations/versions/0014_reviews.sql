-- Reviews in full: rewards, service cases, surveys, links.
SELECT 1;
